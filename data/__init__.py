"""Class tables, image folders and label-map stores."""
