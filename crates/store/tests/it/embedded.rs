//! What only a file can do to us: be missing, replaced, locked, read-only, full, or no database at all.

use std::process::Command;
use std::time::{Duration, Instant};

use store::embedded::EmbeddedStore;
use store::{LeaseStore, StoreError};

use crate::world::{FileWorld, World, block_on, net, node, seen, watching, witness};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

#[test]
fn the_file_can_be_read_with_ordinary_tools() {
    block_on(async {
        let world = FileWorld::new();
        world.put_config(CONFIG);
        let held = world.store(60).acquire(&net(CONFIG), &node(1)).await.unwrap();
        let path = world.path().display().to_string();
        let Some(text) = witness(
            "sqlite3",
            &[&path, "SELECT key, value FROM config UNION ALL SELECT key, value FROM lease"],
        ) else {
            println!("SKIP the_file_can_be_read_with_ordinary_tools: no sqlite3 on this machine");
            return;
        };
        let key = held.lease.subnets.to_string().replace('/', "-");
        assert!(
            text.starts_with(&format!("config|{CONFIG}\n{key}|{{\"PublicIP\":\"192.168.0.1\"")),
            "{text}"
        );
        assert_eq!(witness("sqlite3", &[&path, "PRAGMA integrity_check"]).unwrap().trim(), "ok");
    });
}

#[test]
fn a_change_is_seen_at_once() {
    block_on(async {
        let world = FileWorld::new();
        world.put_config(CONFIG);
        let writer = world.store(60);
        watching(&world.store(60), async |mut views| {
            seen(&mut views, "the snapshot is there", |v| v.complete).await;
            let mut slowest = Duration::ZERO;
            for n in 1..=20 {
                writer.acquire(&net(CONFIG), &node(n)).await.unwrap();
                let begun = Instant::now();
                seen(&mut views, "the lease is there", |v| v.peers.len() == usize::from(n)).await;
                slowest = slowest.max(begun.elapsed());
            }
            // The poll alone would take half a second on average.
            assert!(slowest < Duration::from_millis(900), "{slowest:?}");
        })
        .await;
    });
}

#[test]
fn the_watch_follows_the_path_to_another_file() {
    block_on(async {
        let world = FileWorld::new();
        let store = world.store(60);
        watching(&world.store(60), async |mut views| {
            let view = seen(&mut views, "there is no file", |v| v.trouble.is_some()).await;
            assert!(view.trouble.unwrap().contains("loden.db") && !view.complete);
            assert!(!world.path().exists(), "looking makes no file");
            world.put_config(CONFIG);
            store.acquire(&net(CONFIG), &node(1)).await.unwrap();
            seen(&mut views, "the lease is there", |v| v.peers.len() == 1 && v.trouble.is_none()).await;
            for name in ["loden.db", "loden.db-wal", "loden.db-shm"] {
                let _ = std::fs::remove_file(world.dir.path().join(name));
            }
            let view = seen(&mut views, "the file is gone", |v| v.trouble.is_some()).await;
            assert_eq!(view.peers.len(), 1, "what is known stays");
            world.put_config(CONFIG);
            store.acquire(&net(CONFIG), &node(2)).await.unwrap();
            store.acquire(&net(CONFIG), &node(3)).await.unwrap();
            seen(&mut views, "the new file is read", |v| v.peers.len() == 2 && v.trouble.is_none()).await;
        })
        .await;
    });
}

#[test]
fn a_bad_file_is_named_with_a_way_out() {
    block_on(async {
        let world = FileWorld::new();
        let dir = world.dir.path();
        std::fs::write(
            dir.join("text"),
            "This is not a database, although it is long enough to be one. ".repeat(40),
        )
        .unwrap();
        std::fs::create_dir(dir.join("folder")).unwrap();
        std::fs::write(dir.join("plain"), "").unwrap();
        let conn = rusqlite::Connection::open(dir.join("foreign")).unwrap();
        conn.execute_batch("CREATE TABLE photos (x)").unwrap();
        let newer = rusqlite::Connection::open(dir.join("newer")).unwrap();
        newer.execute_batch("PRAGMA application_id = 1282368622; PRAGMA user_version = 99").unwrap();
        for (name, words) in [
            ("text", "not a sound SQLite database"),
            ("folder", "is it a file"),
            ("plain/loden.db", "plain"),
            ("foreign", "another program"),
            ("newer", "newer program"),
        ] {
            let store = EmbeddedStore::new(dir.join(name), Duration::from_secs(60));
            let text = store.put_config(CONFIG).await.unwrap_err().to_string();
            let path = dir.join(name.split('/').next().unwrap());
            assert!(
                text.contains(words) && text.contains(path.to_str().unwrap()) && !text.contains('\n'),
                "{text:?}"
            );
            let again = store.acquire(&net(CONFIG), &node(1)).await.unwrap_err().to_string();
            assert!(again.contains(words), "{again:?}");
        }
        let untouched: i64 =
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(untouched, 1, "another program's database gets no tables of ours");
        // Moved away, as the sentence advises.
        let store = EmbeddedStore::new(dir.join("text"), Duration::from_secs(60));
        assert!(store.put_config(CONFIG).await.is_err());
        std::fs::rename(dir.join("text"), dir.join("old")).unwrap();
        store.put_config(CONFIG).await.unwrap();
        store.acquire(&net(CONFIG), &node(1)).await.unwrap();
    });
}

#[test]
fn a_locked_file_is_waited_for_and_named() {
    block_on(async {
        let world = FileWorld::new();
        world.put_config(CONFIG);
        let (store, watcher) = (world.store(60), world.store(60));
        let lock = rusqlite::Connection::open(world.path()).unwrap();
        lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
        watching(&watcher, async |mut views| {
            // The runtime goes on while SQLite waits: readers are not even locked out.
            let (config, request) = (net(CONFIG), node(1));
            let (result, ()) = tokio::join!(store.acquire(&config, &request), async {
                seen(&mut views, "the snapshot is there", |v| v.complete).await;
            });
            match result {
                Err(StoreError::Unreachable(text)) => assert!(text.contains("locked"), "{text:?}"),
                other => panic!("{other:?}"),
            }
            lock.execute_batch("COMMIT").unwrap();
            store.acquire(&net(CONFIG), &node(1)).await.unwrap();
            seen(&mut views, "the lease is there", |v| v.peers.len() == 1).await;
        })
        .await;
    });
}

/// Runs the test called `name` again in a mount namespace of its own; `true` in there.
fn in_own_mounts(name: &str) -> bool {
    if std::env::var_os("LODEN_TEST_MOUNTS").is_some() {
        return true;
    }
    // Directories that are mount points in there cannot be removed from inside.
    let folder = tempfile::TempDir::new().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env("LODEN_TEST_MOUNTS", "1").env("TMPDIR", folder.path());
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) if String::from_utf8_lossy(&output.stderr).contains("unshare failed") => {
            println!("SKIP {name}: no mount namespaces here");
        }
        Ok(output) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => println!("SKIP {name}: unshare: {error}"),
    }
    false
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

#[test]
fn a_full_or_read_only_disk_is_named_and_got_over() {
    if !in_own_mounts("embedded::a_full_or_read_only_disk_is_named_and_got_over") {
        return;
    }
    block_on(async {
        let world = FileWorld::new();
        let disk = world.dir.path().to_str().unwrap().to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", &disk]);
        world.put_config(CONFIG);
        let (store, watcher) = (world.store(60), world.store(60));
        let held = store.acquire(&net(CONFIG), &node(1)).await.unwrap();
        watching(&watcher, async |mut views| {
            seen(&mut views, "the lease is there", |v| v.peers.len() == 1).await;
            let ballast = world.dir.path().join("ballast");
            let _ = std::fs::write(&ballast, vec![0; 1 << 20]);
            let mut n = 1;
            let error = loop {
                n += 1;
                if let Err(error) = store.acquire(&net(CONFIG), &node(n)).await {
                    break error;
                }
            };
            assert!(
                matches!(&error, StoreError::Unreachable(text) if text.contains("disk is full")),
                "{error:?}"
            );
            std::fs::remove_file(ballast).unwrap();
            store.acquire(&net(CONFIG), &node(n)).await.unwrap();
            seen(&mut views, "all are there", |v| v.peers.len() == usize::from(n)).await;
            let locked = tempfile::TempDir::new().unwrap();
            let other = locked.path().to_str().unwrap();
            run("mount", &["--bind", &disk, other]);
            run("mount", &["-o", "remount,bind,ro", other]);
            let reader = EmbeddedStore::new(locked.path().join("loden.db"), Duration::from_secs(60));
            for error in [
                reader.renew(&held, &held.lease.attrs).await.unwrap_err(),
                reader.put_config(CONFIG).await.unwrap_err(),
                EmbeddedStore::new(locked.path().join("a/b"), Duration::from_secs(1))
                    .put_config("")
                    .await
                    .unwrap_err(),
            ] {
                assert!(
                    matches!(&error, StoreError::Denied(text) if text.to_lowercase().contains("read-only")),
                    "{error:?}"
                );
            }
            run("mount", &["-o", "remount,bind,rw", other]);
            reader.put_config(CONFIG).await.unwrap();
            let view = views.borrow().clone();
            assert_eq!(view.peers.len(), usize::from(n), "what is known stays");
        })
        .await;
    });
}
