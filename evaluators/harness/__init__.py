"""Tasks of lm-eval, asked through this engine."""

from evaluators.harness.lm_eval_task import LmEvalTask as LmEvalTask
