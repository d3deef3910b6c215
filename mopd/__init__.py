"""The method: multi-rollout on-policy distillation, on paper and in torch, without Ray, vLLM or Hydra.

Shape legend, used as suffixes of names here and in `trainer/` (`logprobs_N_T` has shape [N, T]):

    P  prompts of a step            G  rollouts per prompt (a group)
    N  sequences, N = P * G         B  sequences of one micro-batch
    T  response tokens              L  tokens of prompt and response
    K  entries of the top-k         V  vocabulary
    H  hidden size

Importing this package imports no torch: verifiers and data tools stay light.
"""

__version__ = "0.1.0"
