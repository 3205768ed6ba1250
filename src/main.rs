//! The `meshwork` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshwork::cli::main()
}
