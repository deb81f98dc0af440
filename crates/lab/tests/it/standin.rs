//! The program this crate's tests start: `lab …` is the lab's command line, `flanneld` a stand-in whose
//! behaviour the variable STANDIN chooses, so that agents that fail can be had at will. Not a product.

use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::exit;

fn main() {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let args: Vec<String> = words.collect();
    let say = |line: &str| {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    };
    match (name.as_str(), args.first().map(String::as_str)) {
        ("flanneld", _) => {
            say(&format!("stand-in started with {}", args.join(" ")));
            say(&format!("store {}", std::env::var("LODEN_STORE").unwrap_or_default()));
            if std::env::var("STANDIN").is_ok_and(|v| v == "dies") {
                say("E cannot go on: the stars are wrong");
                exit(3);
            }
            let path = std::env::var("NOTIFY_SOCKET").unwrap_or_default();
            say("about to be ready");
            if UnixDatagram::unbound().and_then(|s| s.send_to(b"STATUS=up\nREADY=1\n", path)).is_err() {
                exit(4);
            }
            loop {
                std::thread::park();
            }
        }
        (_, Some("config")) => {
            let mut conf = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut conf);
            if read.is_err() || conf.contains("nonsense") {
                say("loden: Backend.Type \"nonsense\" is unknown");
                exit(1);
            }
        }
        (_, Some("lab")) => exit(lab::main(args[1..].to_vec())),
        _ => exit(2),
    }
}
