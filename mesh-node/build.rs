//! Tells the program which sources it is of: `MESH_REVISION`, or what git says, where there is a repository.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_REVISION");
    if std::env::var_os("MESH_REVISION").is_some() {
        return;
    }
    let Some(revision) = git(&["rev-parse", "--short=12", "HEAD"]) else { return };
    println!("cargo::rustc-env=MESH_REVISION={revision}");
    // a file that is not there would be taken for changed at each build
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
