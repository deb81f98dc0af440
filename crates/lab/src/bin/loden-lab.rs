//! `loden lab` alone, without an agent in the same program: what this crate's own tests start.

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    let _ = args.next_if(|word| word == "lab");
    std::process::exit(lab::main(args.collect()));
}
