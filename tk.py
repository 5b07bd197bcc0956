import numpy as np, sys, subprocess
sys.path.insert(0,'/tmp/wt_rows')
from tests.fixtures import official
e,_,_=official.model('resnet26_acmix'); np.savez('/tmp/rows/sd.npz',**e)
