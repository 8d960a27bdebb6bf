"""Training with a penalty on groups of weights, and without it.

blocks: norms and scaling of all groups of a network at once.
penalties: values, proximal operators and optimality conditions; penalty_check and penalty_plugin: of plugins.
proximal: proximal optimizers; objective: loss plus penalty; solver: minimises it at one lambda after another.
refit: training of the pruned network; distillation: the original network's outputs as targets.
epochs: batches of an epoch, and repeats with a halved step size.
"""
