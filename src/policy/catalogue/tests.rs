use super::*;

#[test]
fn the_embedded_catalogue_is_complete() {
    let catalogue = Catalogue::parse(EMBEDDED, "jsa.toml").unwrap_or_else(|wrong| panic!("{wrong}"));
    let count = |kind| catalogue.rows.iter().filter(|row| row.kind == kind).count();
    assert_eq!((count(RowKind::Port), count(RowKind::PublicServer), count(RowKind::Base)), (67, 3, 1));
}
