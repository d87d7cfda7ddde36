"""Every key of a configuration, with its default and why.

Other files change some of them: `config = base.get_config()`, then
`config.objective.confidence = "none"`. The dictionary is locked: a misspelt
key is an error. On the command line, `--config.batch_size=64`.

configs/quickstart.py is a configuration that runs in minutes on two CPU cores.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  """The defaults: a ViT-S and a text-S on 8 frames of 224 pixels."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of the parameters, the order of the data, dropout, masks
  config.batch_size = 256  # global: the negatives of a pair are batch_size - 1
  # Grad cache: encode the batch in this many chunks, one after the other, and
  # keep only their embeddings. Less memory, one more pass through the encoders;
  # the negatives are still those of the whole batch.
  config.grad_cache_chunks = 1
  config.total_steps = 100_000
  config.log_every = 50  # steps
  config.checkpoint_every = 1_000  # steps
  config.keep_checkpoints = 3  # the latest ones
  config.max_bad_steps = 20  # non-finite steps in a row that end the run
  # Without progress for this long, the run writes the stack of every thread to
  # stall.txt; after twice as long it ends. Set it above the time to compile.
  # 0: never.
  config.stall_seconds = 1800
  config.alarms = ml_collections.ConfigDict()  # 0 turns one off
  # Warn of a loss that is this many robust standard deviations above the losses
  # before it.
  config.alarms.loss_spike = 10.0
  # Warn of an effective sample size below this share of the batch: a few pairs
  # then hold nearly all of the weight.
  config.alarms.effective_sample_share = 0.05
  # Warn of an in-batch accuracy near chance after this many steps.
  config.alarms.no_learning_steps = 200
  # Zero-shot retrieval during training; 0: never. A multiple of log_every.
  config.evaluate_every = 0  # steps
  config.evaluate_splits = "val"  # separated by commas

  config.data = ml_collections.ConfigDict()
  # Prepared folders, separated by commas, and how often each is read.
  config.data.datasets = ""
  config.data.weights = "1"
  config.data.split = "train"
  config.data.num_frames = 8
  config.data.image_size = 224  # pixels
  # uniform: one frame of each of num_frames equal parts, since a caption is
  # about the whole clip. window: every frame_stride-th stored frame.
  config.data.frames = "uniform"
  config.data.frame_stride = 1
  config.data.min_crop_area = 0.5  # of the picture, in training
  # bilinear, after the JPEG decoder's own reduction; or antialiased, at six
  # times the cost (docs/results.md: by how much they differ).
  config.data.resize = "bilinear"
  # Mirror half of the clips: never; unsided, but for those whose caption says
  # left or right (in English); always.
  config.data.flip = "never"
  # Brightness, contrast and saturation of a clip change by at most this share.
  config.data.colour_jitter = 0.0
  config.data.text_length = 32  # tokens, begin and end included
  # Keep the training split in memory: its decoded frames where min_crop_area
  # is 1, else its records.
  config.data.cache = False
  config.data.max_bad_fraction = 0.01  # of samples that may be substituted
  # For studies: this share of the training clips gets another clip's caption.
  config.data.mismatch = 0.0
  # Whose: uniform, any; near, one that says almost the same; within_group, one
  # of its group; shifted, the next clip's of its group; partial, half of one.
  config.data.mismatch_kind = "uniform"
  config.data.mismatch_seed = 0
  # Of confidence=given: a table of P(fits), the pairs.parquet of clean.
  config.data.confidences = ""

  config.model = ml_collections.ConfigDict()
  # The video tower, chosen by name, with that tower's settings. vit: a
  # factorised space-time transformer; or what a function below returns.
  config.model.video = ml_collections.ConfigDict()
  config.model.video.name = "vit"
  config.model.video.size = "S"  # mu, nano, Ti, S, B, L, H, g
  config.model.video.temporal_depth = 4  # blocks along time, after space
  config.model.video.tubelet = (2, 16)  # frames and pixels of a token
  config.model.video.pooling = "map"  # attention with a learned query; or mean
  # centred: about the mean of each clip's own pixels. scaled: [0, 255] to
  # [-1, 1], with which learning may not start where most of every picture is
  # alike.
  config.model.video.pixels = "centred"
  # The text tower, likewise. transformer: bidirectional; or see below.
  config.model.text = ml_collections.ConfigDict()
  config.model.text.name = "transformer"
  config.model.text.size = "S"  # mu, nano, Ti, S, B, L, H, g
  config.model.text.pooling = "map"  # or mean
  config.model.embedding_dim = 256
  # Embeddings about their mean: the batch's in training, its running mean
  # after. False: they may all become one point, and learning not start.
  config.model.centre = True
  config.model.dropout = 0.0
  config.model.dtype = "bfloat16"  # of products; parameters, losses: float32
  config.model.scan = True  # one compiled block a stack
  config.model.remat = "none"  # none, dots or full: memory for time
  config.model.logit_scale = 14.3  # 1 / 0.07, learned, at most 100 (CLIP)
  # Of siglip alone: added to the scaled cosines, learned (-10 in its paper).
  config.model.logit_bias = config_dict.placeholder(float)
  # mlp on the two embeddings: cheap, and small enough not to memorise soon.
  # bilinear, cosine: smaller still; fusion: text tokens look at video tokens.
  config.model.head = "mlp"
  config.model.head_hidden = 128
  # False: the correspondence loss teaches the encoders too (co-training).
  config.model.head_detached = False
  # Two heads: each learns from half of the pairs and scores the other half.
  config.model.cross_fit = True
  config.model.predictive_task = "masked_text"  # or caption, latent
  config.model.predictive_depth = 2  # decoder blocks
  config.model.mask_rate = 0.3  # of the words, of masked_text
  # Names of the classes that a classifier on the video tower's feature tells
  # apart; finetune takes them from the labels of the data.
  config.model.classes = ()

  # Folders of weights that the towers start from ("": fresh ones), see
  # docs/towers.md. Read once: a resumed run does not need them.
  config.init = ml_collections.ConfigDict()
  config.init.video = ""  # ViT, CLIP, SigLIP, DINOv2, I3D; an export
  config.init.text = ""  # BERT, DistilBERT, MiniLM, CLIP; an export
  config.init.model = ""  # an export or a run, for towers and heads: finetune

  config.objective = ml_collections.ConfigDict()
  # A tenth: with 1 each, the encoders serve the other two terms at the cost of
  # retrieval, without any noise as well (docs/method.md).
  config.objective.correspondence_weight = 0.1  # lambda_c
  config.objective.contrastive_weight = 1.0  # lambda_n
  config.objective.predictive_weight = 0.1  # lambda_p
  # Of the cross entropy of model.classes.
  config.objective.classification_weight = 0.0  # lambda_y
  config.objective.label_smoothing = 0.0  # of its targets
  # Each pair's l_i: infonce, or a loss that Cali-NCE is compared with: rince,
  # gce, mixture, albef, norton, siglip, mil_nce, mil_nce_released.
  config.objective.contrastive = "infonce"
  # A pair that appears in a batch twice is not its own negative.
  config.objective.mask_duplicates = False
  # K, uniform in-batch negatives for each video. Even, since the two heads of
  # model.cross_fit share them.
  config.objective.num_negatives = 4
  # How far a pair is trusted: density_ratio, posterior, score, none (all alike)
  # and, to compare with, robust_xid and oracle (the truth, if it is known).
  # given: data.confidences, moved by what training learns (docs/clean.md).
  config.objective.confidence = "density_ratio"
  # What ranks the pairs: head, the correspondence head's logit; cosine, of the
  # contrastive embeddings; or both.
  config.objective.scorer = "both"
  # The share of mismatched pairs; None: estimated from the scores.
  config.objective.noise_rate = config_dict.placeholder(float)
  # When weights leave 1. evidence: as far as given pairs and negatives are told
  # apart beyond sampling error, whatever the step; schedule: after warmup_share
  # of the steps, to the posterior to the power below.
  config.objective.trust = "evidence"
  config.objective.floor = 0.0  # the least weight
  # The posterior's power, > 1 separates more. evidence: the largest that is
  # tried; the one that is used leaves about 1 - eta of the pairs.
  config.objective.power = 5.0
  # A pair's confidence is averaged over its last 1 / (1 - memory) epochs or so.
  config.objective.memory = 0.0
  config.objective.warmup_share = 0.05  # of total_steps with all weights 1
  config.objective.ramp_share = 0.1  # of total_steps to blend them in
  # Whether the weights also apply to the predictive term.
  config.objective.weigh_predictive = True
  # 0.95: the statistics of alignment scores cover about the last 20 batches.
  config.objective.histogram_decay = 0.95

  # The N x N similarities of the contrastive loss: dense; tiled, in memory that
  # grows with N / devices alone (infonce, rince, gce, mixture, siglip); auto,
  # tiled where they would take more than 64 MiB a device.
  config.similarities = ml_collections.ConfigDict()
  config.similarities.form = "auto"
  config.similarities.tile = 1024  # pairs; larger ones suit large accelerators
  # bfloat16: faster products of the tiles, with float32 sums.
  config.similarities.matmul_dtype = "float32"
  # Bytes on each device: similarities that fit are kept for the backward pass.
  config.similarities.max_saved_bytes = 2**23
  # What makes a tile: xla; or pallas, a kernel for GPUs that has not been timed
  # on one yet (tiles of a multiple of 64 pairs).
  config.similarities.kernel = "xla"

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-3  # the peak; cosine decay to 0
  config.optimizer.warmup_share = 0.05  # of total_steps
  config.optimizer.weight_decay = 0.05  # of the matrices alone
  config.optimizer.max_grad_norm = 1.0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.98
  config.optimizer.ema_decay = 0.999  # of the parameters that are evaluated
  # (regular expression over the parameter's path, factor of its learning rate);
  # the first match counts, no match is 1. For a new head beside warm towers.
  config.optimizer.multipliers = ()
  # Below 1: in each tower, a block's learning rate is this times that of the
  # block after it.
  config.optimizer.layer_decay = 1.0
  # Above 0: only so many last blocks of each tower are trained, and what comes
  # after them.
  config.optimizer.trained_blocks = 0
  # Parameters whose path this regular expression is found in stay as they are;
  # "": none.
  config.optimizer.frozen = ""

  config.sharding = ml_collections.ConfigDict()
  config.sharding.model_parallel = 1  # devices that share one model's width
  # Groups of devices that each hold all parameters. 0: of at most 16 devices,
  # see runtime/sharding.py. More, where no axis of a matrix is divided by the
  # devices of one group; fewer, where the parameters do not fit.
  config.sharding.slices = 0
  # (regular expression over the parameter's path, replicate | fsdp | model);
  # the first match counts.
  config.sharding.rules = ((".*", "fsdp"),)
  return config.lock()


def frame_vit() -> ml_collections.ConfigDict:
  """`config.model.video`: an image ViT on each frame; here ViT-B/16."""
  tower = ml_collections.ConfigDict({"name": "frame_vit"})
  tower.size = "B"  # mu to g, or WIDTHxDEPTHxHEADSxHIDDEN: 384x12x6x1536
  tower.patch = 16  # pixels, each way
  # Blocks along time on the frames' features, which begin without effect; 0:
  # the mean of the frames.
  tower.temporal_depth = 0
  tower.pooling = "cls"  # of a frame's tokens; or mean of the patches, map
  tower.class_token = True
  tower.input_norm = False  # a layer norm before the first block (CLIP)
  tower.layer_scale = False  # a learned factor for each channel (DINOv2)
  tower.activation = "gelu"  # gelu_tanh (SigLIP), quick_gelu (CLIP)
  tower.epsilon = 1e-12  # of the layer norms
  # Taken off each channel and divided by, of pixels in [0, 1].
  tower.pixel_mean = (0.5, 0.5, 0.5)
  tower.pixel_std = (0.5, 0.5, 0.5)
  return tower


def i3d() -> ml_collections.ConfigDict:
  """`config.model.video`: I3D, which has no settings; see docs/towers.md."""
  return ml_collections.ConfigDict({"name": "i3d"})


def bert() -> ml_collections.ConfigDict:
  """`config.model.text`: BERT's transformer, post-normalised; BERT-base."""
  tower = ml_collections.ConfigDict({"name": "bert"})
  tower.size = "B"  # as above
  tower.pooling = "cls"  # the first token; mean (MiniLM), map
  tower.activation = "gelu"  # gelu_tanh, quick_gelu
  tower.epsilon = 1e-12  # of the layer norms
  return tower


def clip_text() -> ml_collections.ConfigDict:
  """`config.model.text`: CLIP's causal transformer; that of its ViT-B/16."""
  tower = ml_collections.ConfigDict({"name": "clip_text"})
  tower.size = "512x12x8x2048"  # as above
  tower.activation = "quick_gelu"  # gelu, gelu_tanh
  tower.epsilon = 1e-5  # of the layer norms
  return tower


# By name, for configurations that are given one.
OTHER_VIDEO_TOWERS = {"frame_vit": frame_vit, "i3d": i3d}
OTHER_TEXT_TOWERS = {"bert": bert, "clip_text": clip_text}
