"""The encoding of a file is right, or the file is refused with the ways to read it."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources import text
from embedding_pipelines_tests.contracts_sources import check_source, make, read

TEXTS = {
    "de": [
        "Günstige Küchengeräte für große Familien",
        "Der Lüfter läuft leise, prüfen Sie das Maß",
    ],
    "fr": ["Chaise en bois très légère, livrée démontée", "Crème brûlée à l'ancienne, déjà prête"],
    "es": ["Silla plegable, ligera y cómoda para niños", "Envío rápido a toda España en otoño"],
    "en": ["The customer’s order didn’t arrive", "I don’t think it’s right – please “help”"],
    "pl": ["Żółta łódź podwodna z drewna", "Sprzęt kuchenny najwyższej jakości, świetna cena"],
    "cs": ["Příliš žluťoučký kůň úpěl ďábelské ódy", "Kuchyňské spotřebiče za nejnižší ceny"],
    "hu": ["Összecsukható fa szék, nagyon könnyű", "Ingyenes kiszállítás, kitűnő minőség"],
    "tr": ["Ahşap sandalye, çok hafif ve kullanışlı", "Çocuklar için güvenli, ışıklı oyuncak"],
    "lt": ["Sulankstoma medinė kėdė, labai lengva", "Virtuvės prietaisai mažiausiomis kainomis"],
    "ru": ["Недорогая кухонная техника для семьи", "Стул деревянный, складной, очень лёгкий"],
    "uk": ["Складаний дерев'яний стілець, дуже легкий", "Кухонне приладдя за найнижчими цінами"],
    "el": ["Ξύλινη καρέκλα, πολύ ελαφριά και άνετη", "Δωρεάν αποστολή σε όλη τη χώρα"],
    "he": ["כיסא עץ מתקפל קל מאוד ונוח", "משלוח חינם לכל הארץ"],
    "ar": ["كرسي خشبي قابل للطي خفيف جدا", "شحن مجاني لجميع أنحاء البلاد"],
    "th": ["เก้าอี้ไม้พับได้ น้ำหนักเบามาก", "จัดส่งฟรีทั่วประเทศ"],
    "ja": ["折りたたみ式の木製の椅子、とても軽い", "キッチン用品を最低価格で販売しています"],
    "zh": ["折叠木椅，非常轻便舒适", "厨房用具最低价格出售"],
    "tw": ["折疊木椅，非常輕便舒適", "廚房用具最低價格出售"],
    "ko": ["접이식 나무 의자, 매우 가볍고 편안합니다", "주방 용품을 최저가로 판매합니다"],
}
WRITTEN = [
    *(("de", name) for name in ("cp1252", "iso8859-15", "cp850", "mac_roman")),
    *(("fr", name) for name in ("cp1252", "latin-1", "cp850", "mac_roman")),
    *(("es", name) for name in ("cp1252", "cp850")),
    *(("en", name) for name in ("cp1252",)),
    *(("pl", name) for name in ("cp1250", "iso8859-2", "cp852")),
    *(("cs", name) for name in ("cp1250", "iso8859-2")),
    *(("hu", name) for name in ("cp1250", "iso8859-2")),
    *(("ru", name) for name in ("cp1251", "koi8-r", "cp866", "iso8859-5")),
    *(("uk", name) for name in ("cp1251", "koi8-u")),
    *(("el", name) for name in ("cp1253", "iso8859-7")),
    *(("ar", name) for name in ("cp1256", "iso8859-6")),
    *(("ja", name) for name in ("shift_jis", "euc_jp", "iso2022_jp")),
    *(("zh", name) for name in ("gb18030", "gbk")),
    *(("ko", name) for name in ("euc_kr", "cp949", "iso2022_kr")),
    *(("tr", "cp1254"), ("lt", "cp1257"), ("he", "cp1255"), ("th", "tis-620"), ("tw", "big5")),
    *((language, "utf-16-le") for language in ("en", "ru", "ja")),
    *((language, "utf-16-be") for language in ("de", "zh")),
    *((language, name) for language in ("en", "ja") for name in ("utf-32-le", "utf-32-be")),
]


def _write(home: Path, language: str, encoding: str, rows: int) -> list[str]:
    texts = [TEXTS[language][at % 2] for at in range(rows)]
    lines = ["id,text,tag", *(f'{at},"{each}",plain' for at, each in enumerate(texts)), ""]
    (home / "a.csv").write_bytes("\r\n".join(lines).encode(encoding))
    return texts


@pytest.mark.parametrize(("language", "encoding"), WRITTEN)
@pytest.mark.parametrize("rows", [2, 60])
def test_a_text_is_read_as_it_was_written_and_the_encoding_is_told(
    tmp_path: Path, language: str, encoding: str, rows: int
) -> None:
    texts = _write(tmp_path, language, encoding, rows)
    documents, _, (log,) = read(make("csv", "a.csv", id="id"), tmp_path)
    assert [row["text"] for row in documents] == texts
    assert log.encoding is not None
    assert log.encoding in log.notes[0]
    assert read(make("csv", "a.csv", id="id", encoding=encoding), tmp_path)[0] == documents


@pytest.mark.parametrize(
    ("word", "encoding"),
    [("café – naïve", "cp1252"), ("£20", "cp1252"), ("Łódź", "cp1250"), ("10°C ½", "cp1252")],
)
def test_too_little_to_tell_is_refused_with_the_readings(
    tmp_path: Path, word: str, encoding: str
) -> None:
    (tmp_path / "a.csv").write_bytes(f"id,text\n1,{word}\n".encode(encoding))
    with pytest.raises(SourceError, match=r"a\.csv: is not UTF-8, and holds too little") as caught:
        read(make("csv", "a.csv", id="id"), tmp_path)
    assert repr(f"1,{word}") in str(caught.value)
    assert f"{encoding} " in str(caught.value)
    assert "Set source.encoding" in str(caught.value)
    source = make("csv", "a.csv", id="id", encoding=encoding)
    assert check_source(source, tmp_path, 1)[0][0]["text"] == word


def test_a_file_in_two_encodings_is_refused(tmp_path: Path) -> None:
    rows = ["Der Lüfter läuft leise, prüfen Sie das Maß\n".encode("cp1252")] * 9
    rows[3] = "Günstige Küchengeräte für große Familien\n".encode()
    rows[4] = "Schöne Grüße, größer\n".encode()
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"".join(rows))
    with pytest.raises(SourceError, match=r"a\.csv: is partly UTF-8, partly cp1252"):
        read(make("csv", "a.csv"), tmp_path)
    check_source(make("csv", "a.csv", encoding="utf-8", delimiter="|"), tmp_path, 2, 7)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\n" + bytes(range(1, 256)) * 40)
    with pytest.raises(SourceError, match=r"a\.csv: "):
        read(make("csv", "a.csv"), tmp_path)


def test_a_late_byte_that_is_not_in_the_encoding_is_rejected_alone(tmp_path: Path) -> None:
    texts = _write(tmp_path, "ru", "cp1251", 1_500)
    with (tmp_path / "a.csv").open("ab") as opened:
        opened.write(b"x,bad \x98!,plain\r\ny,fine,plain\r\n")
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 1_501, 1)
    assert documents[0]["text"] == texts[0]
    assert rejections[0].raw == b"x,bad \x98!,plain"


@pytest.mark.parametrize("encoding", ["cp1251", "shift_jis", "gb18030", "euc_kr"])
def test_one_long_line_is_told_as_well(tmp_path: Path, encoding: str) -> None:
    language = {"cp1251": "ru", "shift_jis": "ja", "gb18030": "zh", "euc_kr": "ko"}[encoding]
    long = "x" * 100_000 + (" ".join(TEXTS[language]) + " ") * 200
    (tmp_path / "a.csv").write_bytes(f"text\n{long}".encode(encoding))
    assert check_source(make("csv", "a.csv", delimiter="|"), tmp_path, 1)[0][0]["text"] == long


def test_zero_bytes_and_escapes_in_utf8_are_characters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\na\0b\n\x1b[31mred é\n".encode())
    documents, _, (log,) = read(make("csv", "a.csv"), tmp_path)
    assert [row["text"] for row in documents] == ["a\0b", "\x1b[31mred é"]
    assert (log.encoding, log.notes) == ("utf-8", [])


def test_the_sample_comes_from_all_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 4_096)
    plain = "text\n" + "plain\n" * 5_000
    (tmp_path / "a.csv").write_bytes((plain + "\n".join(TEXTS["pl"] * 3)).encode("cp1250"))
    documents, _ = check_source(make("csv", "a.csv", delimiter="|"), tmp_path, 5_006)
    assert documents[-1]["text"] == TEXTS["pl"][1]
