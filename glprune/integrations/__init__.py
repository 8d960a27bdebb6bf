"""glprune inside other people's pipelines; nothing here is imported by a run that does not ask for it.

``systems`` finds out which pipeline it is in and writes what that one shows: ``github`` annotations and a job
summary, ``gitlab`` reports, ``dvc`` metrics and plots. ``gates`` holds a bundle against limits, ``commands``
are ``glprune gate`` and ``glprune check``. ``tracking`` logs a run to MLflow, ``served`` is the model it logs
(a file of its own that needs no glprune), and ``olive`` is a pass of Olive workflows.
"""
