"""Small byte-level tokenizers made in a moment, with the special tokens and template asked for."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "the question and answer of what is good, hello world! 17+5=22 "
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
  "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
  "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# ChatML with a newline after each turn: the end of the turn is followed by text.
CHATML = (
  "{% for m in messages %}"
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(
  *, pad="<pad>", bos="<bos>", eos="<eos>", template=TEMPLATE, extra=(), plain_bos=True, vocab=400
):
  """A tokenizer; None leaves a special token out, plain_bos puts BOS before plain texts."""
  names = list(dict.fromkeys(t for t in (pad, bos, eos, *ROLES, *extra) if t))
  bpe = Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.train_from_iterator(
    [WORDS * 3] * 4,
    trainers.BpeTrainer(
      vocab_size=vocab,
      special_tokens=names,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  if bos and plain_bos:
    bpe.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
  special = {"pad_token": pad, "bos_token": bos, "eos_token": eos}
  return PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    chat_template=template,
    clean_up_tokenization_spaces=False,
    **{key: value for key, value in special.items() if value},
  )


def conversation(*contents):
  """User and assistant in turn."""
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
