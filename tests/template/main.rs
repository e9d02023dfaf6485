use tasker_worker_rust::template::parse;
#[test]
fn show() {
    for text in [
        include_str!("bad.yaml"),
        "name: [a\nb: c",
        "a: *x",
        "name: a\n  b: c\n",
        "",
        "- a",
        "a: 1\n---\nb: 2",
        "a: \"x",
        "\ta: b",
    ] {
        println!("-----");
        for m in parse(text, None).unwrap_err() {
            println!("{m}");
        }
    }
}
