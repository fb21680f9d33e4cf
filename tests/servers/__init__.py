"""Real servers as people run them, each on loopback, from what `make servers` installs.

A server is made with a folder for its files. After `start()` it answers; `stop()` kills it, and it
can be started again with what it has stored; `close()` ends it for good. `variables` are what its
clients need in their environment, in the words of MLflow and of the store's own SDK; `secrets` what
must be found nowhere else. tests/contract/conftest.py has a fixture of each.
"""
