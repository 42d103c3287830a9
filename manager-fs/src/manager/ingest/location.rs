//! What a publication is told to take in: files as they lie, or a container image, named as other tools for images do
//! (containers-transports(5)).

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What an image's name begins with. Which of the three it is shows in what is there.
const TRANSPORTS: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Location {
    Files(PathBuf),
    Image {
        path: PathBuf,
        /// Which of several.
        reference: Option<String>,
    },
}

impl Location {
    /// `TRANSPORT:PATH[:REFERENCE]` is an image, anything else a path.
    pub(super) fn parse(source: &Path) -> Self {
        let Some((_, image)) = transport(source) else { return Self::Files(source.to_path_buf()) };
        let split = image.to_str().and_then(|text| text.split_once(':'));
        match split {
            // Whoever has a colon in a path means the path.
            Some((path, reference)) if !image.exists() => {
                Self::Image { path: path.into(), reference: Some(reference.to_owned()) }
            }
            _ => Self::Image { path: image.to_path_buf(), reference: None },
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Files(path) | Self::Image { path, .. } => path,
        }
    }
}

fn transport(source: &Path) -> Option<(&'static str, &Path)> {
    let bytes = source.as_os_str().as_bytes();
    let image = |transport: &'static str| Some((transport, bytes.strip_prefix(transport.as_bytes())?));
    let (transport, image) = TRANSPORTS.into_iter().find_map(image)?;
    Some((transport, Path::new(std::ffi::OsStr::from_bytes(image))))
}

/// The same source, for a program with another working directory.
///
/// # Errors
/// There is no working directory, or the path is empty.
pub fn absolute(source: &Path) -> io::Result<PathBuf> {
    let Some((transport, image)) = transport(source) else { return std::path::absolute(source) };
    let absolute = std::path::absolute(image)?.into_os_string().into_vec();
    Ok(std::ffi::OsString::from_vec([transport.as_bytes(), &absolute].concat()).into())
}

/// Whether a source is the same wherever a program works.
pub(crate) fn is_absolute(source: &Path) -> bool {
    transport(source).map_or(source, |(_, image)| image).is_absolute()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_as_other_tools_name_them() {
        let image = |path: &str, reference: Option<&str>| Location::Image {
            path: path.into(),
            reference: reference.map(str::to_owned),
        };
        let parse = |source: &str| Location::parse(Path::new(source));
        assert_eq!(parse("oci:/no/dir"), image("/no/dir", None));
        assert_eq!(parse("oci-archive:/no/a.tar"), image("/no/a.tar", None));
        assert_eq!(parse("docker-archive:/no/a.tar:nginx:1.27"), image("/no/a.tar", Some("nginx:1.27")));
        assert_eq!(parse("./oci:dir"), Location::Files("./oci:dir".into()));
        assert_eq!(parse("docker:dir"), Location::Files("docker:dir".into()));
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(parse(&format!("oci:{}", odd.display())), image(odd.to_str().unwrap(), None));

        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("oci:x:y")).unwrap(), Path::new(&format!("oci:{}/x:y", here.display())));
        assert_eq!(absolute(Path::new("x")).unwrap(), here.join("x"));
        for (source, expected) in [("oci:/x", true), ("oci:x", false), ("/x", true), ("x", false), ("oci:", false)] {
            assert_eq!(is_absolute(Path::new(source)), expected, "{source}");
        }
    }
}
