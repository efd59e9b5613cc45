"""What is looked at before any work: files, networks, trainings."""
