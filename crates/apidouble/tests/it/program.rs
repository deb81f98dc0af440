//! The double as a process: commands by lines, and a real kubectl against it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use apidouble::Client;
use serde_json::{Value, json};

struct Program {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(arguments: &[&str]) -> (Self, Client) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_apidouble"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (commands, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut program = Self { child, commands, answers };
        let first = program.answer();
        let text = |field: &str| first[field].as_str().unwrap().to_owned();
        (program, Client { url: text("url"), ca_pem: text("ca"), token: String::new() })
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn tell(&mut self, command: &str) -> Value {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        self.answer()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.commands = None;
        self.child.wait().unwrap();
    }
}

#[test]
fn lines_command_the_process() {
    let (mut program, client) = Program::start(&[]);
    assert_eq!(program.tell("fill 3 full"), json!({"ok": 3}));
    assert_eq!(client.get("/api/v1/nodes").unwrap().json()["items"].as_array().unwrap().len(), 3);
    let merge = r#"merge nodes node-00002 {"metadata": {"annotations": {"a": "b c"}}}"#;
    assert!(program.tell(merge)["ok"].is_string());
    assert_eq!(program.tell("get nodes node-00002")["ok"]["metadata"]["annotations"]["a"], "b c");
    for (command, answer) in [
        (
            r#"create pods {"metadata": {"name": "p", "namespace": "none"}}"#,
            json!("404 NotFound: namespaces \"none\" not found"),
        ),
        ("delete nodes none", json!("404 NotFound: nodes \"none\" not found")),
        ("frobnicate", json!("there is no command \"frobnicate\"; apidouble --help lists them")),
        ("fail - nodes 1 frobnicate", json!("there is no effect \"frobnicate\"")),
        ("create things {}", json!("there is no kind \"things\"")),
    ] {
        assert_eq!(program.tell(command), json!({"error": answer}), "{command}");
    }
    assert_eq!(program.tell("fail list nodes 1 429"), json!({"ok": null}));
    assert_eq!(client.get("/api/v1/nodes").unwrap().code, 429);
    assert_eq!(program.tell("fail - - always drop"), json!({"ok": null}));
    assert!(client.get("/api/v1/nodes").is_err());
    assert_eq!(program.tell("heal"), json!({"ok": null}));
    assert_eq!(client.get("/api/v1/nodes").unwrap().code, 200);
    assert_eq!(program.tell("count list nodes"), json!({"ok": 4}));
}

/// (arguments, what the answer contains)
#[test]
fn kubectl_reads_labels_and_patches_nodes() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("SKIP kubectl_reads_labels_and_patches_nodes: kubectl is not installed");
        return;
    }
    let (mut program, _) = Program::start(&["--tls"]);
    program.tell("fill 3 full");
    let token = program.tell("token admin all")["ok"].as_str().unwrap().to_owned();
    let config = program.tell(&format!("kubeconfig {token}"))["ok"].as_str().unwrap().to_owned();
    let folder: PathBuf = std::env::temp_dir().join(format!("loden-kubectl-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config"), config).unwrap();
    let table: [(&[&str], &str); 11] = [
        (&["get", "nodes"], "node-00003"),
        (&["get", "no", "node-00001", "-o", "name"], "node/node-00001"),
        (&["label", "node", "node-00001", "a=b"], "labeled"),
        (&["get", "nodes", "-l", "a=b", "-o", "name"], "node/node-00001"),
        (&["get", "nodes", "--chunk-size=2", "-o", "name"], "node/node-00003"),
        (&["annotate", "node", "node-00002", "x/y=z"], "annotated"),
        (&["cordon", "node-00002"], "cordoned"),
        (
            &[
                "patch",
                "node",
                "node-00003",
                "--subresource=status",
                "-p",
                r#"{"status":{"conditions":[{"type":"X","status":"True"}]}}"#,
            ],
            "patched",
        ),
        (&["get", "node", "node-00003", "-o", "jsonpath={.status.conditions[0].type}"], "X"),
        (&["get", "node", "none"], "Error from server (NotFound): nodes \"none\" not found"),
        (&["delete", "node", "node-00001"], "deleted"),
    ];
    for (arguments, wanted) in table {
        let output = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", folder.join("config"))
            .env("HOME", &folder)
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(wanted), "kubectl {arguments:?}: {said}");
    }
    assert_eq!(program.tell("get nodes node-00002")["ok"]["metadata"]["annotations"]["x/y"], "z");
    fs::remove_dir_all(&folder).unwrap();
}
