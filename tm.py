import torch, numpy as np
z=np.load('/tmp/rows/sd.npz'); sd={k:torch.from_numpy(z[k]) for k in z.files}
torch.save({'state_dict':{'_orig_mod.'+k: torch.nn.Parameter(v.bfloat16()) for k,v in sd.items()}, 'hyper_parameters':{'lr':.1}}, '/tmp/rows/sd.pt')
