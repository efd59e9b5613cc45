"""One room a stage: what it is made from (`plan`, light) and what makes it (`run`)."""
