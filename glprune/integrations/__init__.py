"""glprune inside other tools; a run imports nothing of it unless asked.

``sklearn`` is a feature selector for scikit-learn, ``mlflow`` logs a run (``mlflow_model`` is the model it
logs, a file of its own without glprune), ``olive`` is a pass of Olive workflows, ``triton_kserve`` writes
model repositories for Triton and KServe, and ``ci`` reports to CI systems. Each needs its own extra, so
they are imported directly, as in ``from glprune.integrations.sklearn import GroupLassoPruner``.
"""
