use serde_json::{Value, json};

use super::*;

const BPE: &str = r#"{
  "version": "1.0",
  "added_tokens": [
    {"id": 3, "content": "<s>", "special": true},
    {"id": 0, "content": "a", "special": false}
  ],
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
  "score": 0.10000000000000001
}"#;

fn added(id: u32, content: &str) -> Added {
    let entry = json!({"id": id, "content": content, "special": true, "lstrip": false});
    Added { id, content: content.to_owned(), entry }
}

#[test]
fn tokens_are_numbered_by_both_lists() {
    let vocabulary = Vocabulary::parse(BPE.as_bytes()).unwrap();
    let mut ids: Vec<_> = vocabulary.ids.iter().map(|(t, id)| (t.as_str(), *id)).collect();
    ids.sort_by_key(|&(_, id)| id);
    assert_eq!(ids, [("a", 0), ("b", 1), ("ab", 2), ("<s>", 3)]);
    assert_eq!(vocabulary.end(), 4);
    assert_eq!(vocabulary.added.iter().map(|t| t.id).collect::<Vec<_>>(), [0, 3]);
    let unigram = r#"{"model": {"type": "Unigram", "vocab": [["x", -1.5], ["y", 0]]}}"#;
    assert_eq!(Vocabulary::parse(unigram.as_bytes()).unwrap().ids["y"], 1);
}

#[test]
fn what_gives_no_clear_numbers_is_refused() {
    for (text, part) in [
        ("[]", "malformed"),
        ("{}", "no `model`"),
        (r#"{"model": {"vocab": 3}}"#, "tokens with their numbers"),
        (r#"{"model": {"vocab": {"a": 0, "a": 1}}}"#, "twice"),
        (r#"{"model": {"vocab": {"a": 0}}, "model": {}}"#, "twice"),
        (r#"{"model": {"vocab": {"a": 1, "b": 1}}}"#, "the number 1 to two tokens"),
        (r#"{"model": {"vocab": {"a": 4294967296}}}"#, "too large"),
        (r#"{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 2}]}"#, "without `content`"),
        (
            r#"{"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 2, "content": "a"}]}"#,
            "two numbers to the token \"a\"",
        ),
    ] {
        let error = Vocabulary::parse(text.as_bytes()).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn new_tokens_follow_and_all_else_stays() {
    let new = [added(4, "<new>"), added(5, "<\"x\n>")];
    let text = String::from_utf8(with_tokens(BPE.as_bytes(), &new).unwrap()).unwrap();
    let vocabulary = Vocabulary::parse(text.as_bytes()).unwrap();
    assert_eq!((vocabulary.ids["<new>"], vocabulary.ids["<\"x\n>"]), (4, 5));
    assert_eq!(vocabulary.ids.len(), 6);
    let tail = &BPE[BPE.find("\n  \"model\"").unwrap()..];
    assert!(text.ends_with(tail) && text.contains("0.10000000000000001"), "{text}");
    let none = r#"{"model": {"vocab": {"a": 0}}}"#;
    let text = with_tokens(none.as_bytes(), &[added(1, "b")]).unwrap();
    assert_eq!(Vocabulary::parse(&text).unwrap().ids["b"], 1);
    let config = json!({"added_tokens_decoder": {"3": {"content": "<s>"}}, "pad_token": null});
    let config = config_with_tokens(config.to_string().as_bytes(), &new).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        config["added_tokens_decoder"]["4"],
        json!({"content": "<new>", "lstrip": false, "special": true})
    );
    let list: Value =
        serde_json::from_slice(&list_with_tokens(br#"{"<s>": 3}"#, &new).unwrap()).unwrap();
    assert_eq!(list, json!({"<s>": 3, "<new>": 4, "<\"x\n>": 5}));
    assert!(list_with_tokens(b"[]", &new).is_err());
}
