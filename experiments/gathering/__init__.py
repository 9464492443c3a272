"""Statistics of experts' data: Gram matrices by forward hooks, Fisher information by gradients."""
