"""How adapters are mixed: recipes, methods, the streaming merge, adaptive mixing, evaluation, and running builds."""
