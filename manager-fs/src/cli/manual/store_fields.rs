//! What `store …` prints as JSON.

use super::fields::{Document, ONE};

pub(super) const DOCUMENTS: &[Document] = &[
    Document {
        command: "store backup",
        what: ONE,
        fields: &[
            ("file", "the backup"),
            ("bytes", "its length"),
            ("records.*", "records of this kind (the first part of their keys), all of one moment"),
            ("keys[]", "the manager's keys that are in it"),
            ("manifests", "manifests that are in it"),
            ("packs", "packs that the generations need"),
            ("pack_bytes", "bytes of them"),
            ("packs_included", "whether they are in the backup, or only named"),
            ("missing", "chunks and manifests that generations need and the store does not have"),
        ],
    },
    Document {
        command: "store restore",
        what: ONE,
        fields: &[
            ("made", "when the backup was made, milliseconds since 1970"),
            ("software", "by which version"),
            ("records.*", "records of this kind (the first part of their keys)"),
            ("keys[]", "the manager's keys"),
            ("manifests", "manifests that were put back"),
            ("packs", "packs that are there now"),
            ("absent_packs[]?", "packs that the backup names and that are not there yet"),
            ("incomplete[]?", "generations that lack bytes"),
        ],
    },
    Document {
        command: "save",
        what: ONE,
        fields: &[
            ("file", "what was made"),
            ("bytes", "its length"),
            ("generations[]", "what is in it"),
            ("publishers[]", "who signed them"),
            ("chunks", "chunks that are in it"),
            ("left_out", "chunks that the other side has"),
            ("relies_on[]?", "trees that the other side must have, as it calls them"),
            ("unknown", "trees of the other side that are not known here"),
            ("resumed_bytes", "what was there from an earlier try"),
        ],
    },
    Document {
        command: "load",
        what: ONE,
        fields: &[
            ("generations[].generation", "product@version"),
            ("generations[].architecture?", "for which machine"),
            ("generations[].tree_id", "its tree"),
            ("generations[].sequence", "the number of the record that this manager signed"),
            ("generations[].already_published", "it was here before"),
            ("new_chunks", "chunks that the store did not have"),
            ("stored_bytes", "their bytes in the store"),
        ],
    },
];
