//! Received files to one checked tree.
