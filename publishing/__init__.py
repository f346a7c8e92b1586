"""Publication to the Hugging Face Hub: package, licenses, upload, signing, verification."""
