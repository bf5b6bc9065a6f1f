use super::*;

fn patterns(words: &[&str]) -> Vec<Pattern> {
    words.iter().map(|word| Pattern::new(word).unwrap()).collect()
}

#[test]
fn a_path_is_compared_part_by_part() {
    let java = ProcessMatch { exe: patterns(&["/usr/lib/jvm/**/bin/java", "/opt/*/jav?"]), ..Default::default() };
    let expected = [
        ("/usr/lib/jvm/java-1.8.0-openjdk-1.8.0.412.b08-2.el8.x86_64/jre/bin/java", true),
        ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", true),
        ("/usr/lib/jvm/bin/java", true),
        ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java (deleted)", false),
        ("/home/user/usr/lib/jvm/x/bin/java", false),
        ("/usr/lib/jvm/x/bin/javac", false),
        ("/opt/ibm/java", true),
        ("/opt/ibm/x/java", false),
        ("/opt/ibm/jav/", false),
        ("/opt/java", false),
    ];
    for (path, allowed) in expected {
        assert_eq!(java.allows_exe(Path::new(path)), allowed, "{path}");
    }
    assert!(ProcessMatch::default().allows_exe(Path::new("/any")));
}

#[test]
fn every_pattern_matches_one_whole_argument() {
    let process = ProcessMatch { args: patterns(&["imqbroker", "-D*=/opt/*"]), ..Default::default() };
    assert!(process.missing_argument(&["java", "-Dhome=/opt/openmq/mq", "imqbroker"]).is_none());
    assert!(process.missing_argument(&["java", "imqbroker"]).is_some());
    assert!(process.missing_argument(&["java", "-Dhome=/opt/openmq/mq", "-name=imqbroker"]).is_some());
    assert!(process.missing_argument::<&str>(&[]).is_some());
    assert!(ProcessMatch::default().missing_argument::<&str>(&[]).is_none());
}

/// A path that a process chose for itself, with the most demanding pattern that a policy can have.
#[test]
fn matching_a_chosen_path_ends_soon() {
    let exe = patterns(&["/**/*a*a*ab/**/*a*a*ab/**/*a*a*ab"]);
    let process = ProcessMatch { exe, ..Default::default() };
    let path = format!("/{}", "a".repeat(255)).repeat(15);
    assert!(!process.allows_exe(Path::new(&path)));
}
