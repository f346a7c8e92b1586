"""How adapters come to be: the plugin contract and the trainers that ship."""
