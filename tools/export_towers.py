"""The two towers of a trained model in the forms that `model.image.pretrained` and `model.text.pretrained` read.

    python tools/export_towers.py RUN OUT

RUN is a run directory or an export, of either stage. OUT/image.safetensors: Swin weights under the original names;
OUT/text: a RoBERTa of Hugging Face with RUN's tokenizer. Half precision; fusion and heads stay behind. Exit status:
0 done, 1 a clear error, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

import fiber
from fiber.backbone.fusion import FusionBackbone
from fiber.errors import WeightsError
from fiber.weights.official import backbone_names, official_name


def towers(backbone: FusionBackbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(Swin, RoBERTa) of `backbone`, fp16, each under the names that it has alone."""
    names = backbone_names(backbone.image.depths, len(backbone.text.layers), 1, "", "")
    image, text = {}, {}
    for name, tensor in backbone.state_dict().items():
        into = image if name.startswith("image.") else text
        if not name.startswith(("fusion.", "image.stage_norms.")):
            into[official_name(name, names)] = tensor.half().contiguous()
    if "norm.weight" not in image:  # a detector ends its image tower otherwise
        end = nn.LayerNorm(backbone.image.widths[-1])
        image |= {f"norm.{name}": tensor.half() for name, tensor in end.state_dict().items()}
    return image, text


def roberta(backbone: FusionBackbone, weights: dict[str, Tensor]) -> RobertaModel:
    """The text tower as transformers has it."""
    text = backbone.text
    vocabulary, width = text.embeddings.word.weight.shape
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(text.layers),
        num_attention_heads=text.heads,
        intermediate_size=text.layers[0].fc1.out_features,
        max_position_embeddings=text.embeddings.position.num_embeddings,
        type_vocab_size=1,
        pad_token_id=text.embeddings.pad_id,
        layer_norm_eps=text.embeddings.norm.eps,
    )
    model = RobertaModel(config, add_pooling_layer=False).to(torch.float16)
    model.load_state_dict(weights)
    return model


def main(argv: list[str] | None = None) -> int:
    """Run the command; -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run directory or export")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        predictor = fiber.load(arguments.run)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    backbone = predictor.model.backbone
    image, text = towers(backbone)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(image, arguments.out / "image.safetensors")
    roberta(backbone, text).save_pretrained(arguments.out / "text")
    predictor.tokenizer.save_pretrained(arguments.out / "text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
