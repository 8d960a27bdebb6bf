"""The auditor's half: everything that reads a bundle without PyTorch, training code or data.

``findings`` holds what a check may say and the exit codes; ``folder`` reads the files, ``strict`` their
JSON, ``onnxfile`` the model. Each check is a module: ``manifest`` (hashes), ``signing``, ``figures``,
``resampled``, ``graph``, ``names``, ``weights``, ``running`` (golden vectors and probes, in a process of
their own), ``policy``, ``page``, ``lineage``. ``verify`` runs them all; ``compare`` tells two bundles
apart, ``explain`` tells one feature's story, ``console`` prints and ``commands`` is the command line.
"""
