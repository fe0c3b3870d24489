"""Tokenizers with readable tokens and chat templates of several families, built in code, without torch."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetuning_workload.data import TokenizedSample

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS_WITH_BOS = (
    "<s>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
TURNS_WITHOUT_EOS = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
INSTRUCTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
UNMARKED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FORGETS_EARLIER_ANSWERS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'assistant' and not loop.last %}(earlier){% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FOREIGN_GENERATION_PROMPT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)
ALTERNATING_ONLY = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}</s>{% endfor %}"
)


def byte_tokenizer(
    *, eos: str | None = "</s>", pad: str = "<pad>", adds_bos: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and a few special ones: any text survives, and ids are easy to count."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _finished(core, eos=eos, pad=pad, adds_bos=adds_bos, chat_template=chat_template)


def word_tokenizer(
    *,
    eos: str | None = "</s>",
    pad: str = "<pad>",
    adds_bos: bool = False,
    words: str = "",
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word, blank, line end or sign, so that a golden sample can be read."""
    known = sorted({"<unk>", " ", "\n", ":", "user", "assistant", "system", "INST", "[", "]", "/", *words.split()})
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s|[^\w\s]"), "isolated")
    core.decoder = decoders.Fuse()
    return _finished(core, eos=eos, pad=pad, adds_bos=adds_bos, chat_template=chat_template)


def _finished(
    core: Tokenizer, *, eos: str | None, pad: str, adds_bos: bool, chat_template: str | None
) -> PreTrainedTokenizerFast:
    marks = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<turn>", "<end_of_turn>"]
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if adds_bos:
        bos_id = core.token_to_id("<s>")
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token=pad)
    tokenizer.chat_template = chat_template
    return tokenizer


def shown(tokenizer: PreTrainedTokenizerBase, sample: TokenizedSample) -> str:
    """Return a sample for a person: tokens in order, runs of supervised ones between « and »."""
    tokens = tokenizer.convert_ids_to_tokens(sample.ids)
    text, inside = "", False
    for token, supervised in zip(tokens, sample.supervised, strict=True):
        text += ("«" if supervised else "»") * (supervised != inside) + token
        inside = supervised
    return text + "»" * inside
