"""Imported first by every worker process: no search for garbage until its worker is there (`trainer.cluster.spawn`)."""

import gc

gc.disable()
