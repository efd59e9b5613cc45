"""Class tables, image folders, label-map stores and the toy city."""
