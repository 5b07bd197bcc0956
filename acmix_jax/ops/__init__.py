"""Pure functions on jax arrays.

Annotations give the shapes of arrays, here and in the packages above. Their
axes have these names, and this order:

  b      images of a batch
  g      groups of images
  h w    rows and columns of a map
  ho wo  those of the outputs: ceil(h / strides) and ceil(w / strides)
  l      positions of a sequence
  kh kw  rows and columns of a kernel
  t      taps: positions of a window, in rows from its top left
  n d    heads, and channels of a head
  m d    maps of each head channel, and head channels
  c f    input and output channels (features)
  k      classes

Those of the operators on boxes (boxes, anchors, matching, sampling, nms,
roi_align, masks) are:

  b      images of a batch
  n      boxes of any kind: anchors, proposals, detections
  g      ground truths
  r      boxes whose features or masks are taken
  s      samples
  h w c  rows, columns and channels of a map

Other axes have whole words. A name with an underscore before it may stand for
several sizes in one call.
"""
