"""The folder that `defemb run` puts on PYTHONPATH, so that the processes that a script starts have the callback too."""
