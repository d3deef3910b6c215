"""Processes that Ray places: policy, sampler, verifier. They take plain arguments and know no Ray."""
