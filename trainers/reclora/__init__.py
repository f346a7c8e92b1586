"""The trainer `reclora`: a LoRA per user, by meta-LoRAs that gates mix (RecLoRA, arXiv 2408.03533)."""
