import json
from pathlib import Path
from typing import Any

import pytest

from multissl.modalities.text.tokenizer import load_tokenizer

pytest.importorskip("transformers", reason="the extra `text` is not installed")


@pytest.mark.parametrize("kind", ["AutoModel", "AutoConfig", "AutoTokenizer", "AutoModelFast", None])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_with_code_of_its_own_gives_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, file: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # who is asked on the terminal says yes
    folder, proof = tmp_path / "stranger", tmp_path / "the code ran"
    folder.mkdir()
    base = "from transformers import PretrainedConfig\n\nclass Config(PretrainedConfig):\n    model_type = 'stranger'\n"
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(proof)!r}).touch()\n{base}")
    config: dict[str, Any] = {"model_type": "stranger", "auto_map": {"AutoConfig": "code.Config"}}
    own: dict[str, Any] = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}} if kind is None else {}
    (config if file == "config.json" else own)["tokenizer_class"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"modality\.tokenizer='.*stranger' holds no tokenizer") as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)
    assert not proof.exists()
