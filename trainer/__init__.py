"""The machine: Ray, vLLM and FSDP2 around the method in `mopd`."""
