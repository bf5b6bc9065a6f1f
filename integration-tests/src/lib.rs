//! A laboratory of hosts as network namespaces, and the tests that drive the real `portward` in it.
