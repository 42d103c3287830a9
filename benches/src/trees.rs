//! Real software to measure with: trees named by the environment, or made of what this machine has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A program's tree and how to start it so that it prints something and ends.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Name of the program.
    pub name: String,
    /// One directory a version, oldest first.
    pub versions: Vec<PathBuf>,
    /// The program, relative to the tree.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// A variable that names a directory of the tree, as some interpreters want it.
    pub home: Option<(String, String)>,
}

impl Tree {
    /// The command that starts the program out of this copy of the tree.
    pub fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(root.join(&self.program));
        command.args(&self.arguments).envs(self.variables(root));
        command
    }

    /// What the program wants in its environment when the tree is there.
    pub fn variables(&self, root: &Path) -> Vec<(String, PathBuf)> {
        let mut variables = vec![("PYTHONDONTWRITEBYTECODE".to_owned(), PathBuf::from("1"))];
        variables.extend(self.home.as_ref().map(|(variable, dir)| (variable.clone(), root.join(dir))));
        variables
    }

    /// The newest version's directory.
    ///
    /// # Errors
    /// There is no version.
    pub fn newest(&self) -> Result<&Path> {
        self.versions.last().map(PathBuf::as_path).with_context(|| format!("there is no version of {}", self.name))
    }
}

/// The trees below `MANAGER_FS_TREES` (`NAME/VERSION/…` with NAME `ruff`, `python311` or `node`), or, without that
/// variable, one made in `scratch` of this machine's own python.
///
/// # Errors
/// The variable names a directory without any of these, or there is no python3.
pub fn find(scratch: &Path) -> Result<Vec<Tree>> {
    let Some(dir) = std::env::var_os("MANAGER_FS_TREES") else { return Ok(vec![own_python(scratch)?]) };
    let dir = PathBuf::from(dir);
    let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>();
    let known = [
        ("ruff", "bin/ruff", text(&["--version"]), None),
        (
            "python311",
            "usr/bin/python3.11",
            text(&["-c", "import json,ssl,asyncio;print(1)"]),
            Some(("PYTHONHOME".to_owned(), "usr".to_owned())),
        ),
        ("node", "bin/node", text(&["-e", "console.log(1)"]), None),
    ];
    let mut trees = Vec::new();
    for (name, program, arguments, home) in known {
        let Ok(list) = std::fs::read_dir(dir.join(name)) else { continue };
        let mut versions: Vec<PathBuf> = list.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        versions.sort();
        trees.push(Tree { name: name.into(), versions, program: program.into(), arguments, home });
    }
    ensure!(!trees.is_empty(), "MANAGER_FS_TREES={} has none of ruff, python311, node", dir.display());
    Ok(trees)
}

/// A copy of the machine's python with its standard library.
fn own_python(scratch: &Path) -> Result<Tree> {
    let script =
        "import sys,sysconfig;print(sys.executable);print(sys.base_prefix);print(sysconfig.get_path('stdlib'))";
    let output = Command::new("python3").args(["-c", script]).output().context("running python3")?;
    let text = String::from_utf8(output.stdout)?;
    let [executable, prefix, library] = text.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("python3 did not say where it is installed: {text}")
    };
    let root = scratch.join("python");
    let library_in_tree = Path::new(library).strip_prefix(prefix)?;
    std::fs::create_dir_all(root.join("bin"))?;
    std::fs::create_dir_all(root.join(library_in_tree).parent().context("a library directory")?)?;
    std::fs::copy(std::fs::canonicalize(executable)?, root.join("bin/python3"))?;
    let copied = Command::new("cp").arg("-a").arg(library).arg(root.join(library_in_tree)).status()?;
    ensure!(copied.success(), "copying {library} failed");
    Ok(Tree {
        name: "python".into(),
        versions: vec![root],
        program: "bin/python3".into(),
        arguments: vec!["-c".into(), "import json,ssl,asyncio;print(1)".into()],
        home: Some(("PYTHONHOME".into(), String::new())),
    })
}
