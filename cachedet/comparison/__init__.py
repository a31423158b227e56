"""The paper's experiment on anybody's data: cached, live, fine-tuned and from scratch."""
