"""What is handed over to others: label maps as PNGs, and the student.

Nothing is computed for it: published artifacts are read, and copied into the forms that other
programs expect.
"""
