//! The main job on one machine, through the same programs as a user.
