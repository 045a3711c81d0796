"""Token frequencies of a corpus under a tokenizer, and their power law."""

from llmsuper.tokens.corpora import Corpus as Corpus
from llmsuper.tokens.corpora import open_corpus as open_corpus
from llmsuper.tokens.counts import TokenCounts as TokenCounts
from llmsuper.tokens.counts import count_tokens as count_tokens
from llmsuper.tokens.power_law import RankFit as RankFit
from llmsuper.tokens.power_law import fit_ranks as fit_ranks
from llmsuper.tokens.tokenizers import TOKENIZERS as TOKENIZERS
from llmsuper.tokens.tokenizers import Tokenizer as Tokenizer
from llmsuper.tokens.tokenizers import open_tokenizer as open_tokenizer
