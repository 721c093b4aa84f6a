//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    reflow::cli::main()
}
