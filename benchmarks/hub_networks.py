"""KerasHub's networks with batch normalization, as small as their constructors allow."""

from collections.abc import Callable

import keras
import keras_hub

models = keras_hub.models


def mobilenet() -> keras.Model:
    """Inverted residuals with squeeze and excitation."""
    return models.MobileNetBackbone(
        stackwise_expansion=[[8], [16, 16]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [8, 8]],
        stackwise_kernel_size=[[3], [5, 5]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[None], [0.25, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [2, 2]],
        output_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        image_shape=(32, 32, 3),
    )


def _efficientnet(block_types: list[str], **options) -> keras.Model:
    count = len(block_types)
    return models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3] * count,
        stackwise_num_repeats=[2] + [1] * (count - 1),
        stackwise_input_filters=[8] * count,
        stackwise_output_filters=[8] * count,
        stackwise_expansion_ratios=[1, *[2] * (count - 1)],
        stackwise_squeeze_and_excite_ratios=[0.25] * count,
        stackwise_strides=[1, *[2] * (count - 1)],
        stackwise_block_types=block_types,
        stackwise_force_input_filters=[0] * count,
        stackwise_nores_option=[False] * count,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_features=16,
        dropout=0.0,
        input_shape=(32, 32, 3),
        **options,
    )


def efficientnet_v1() -> keras.Model:
    """Of v1 blocks, plain functions."""
    return _efficientnet(["v1", "v1"])


def efficientnet_v2() -> keras.Model:
    """Of fused and unfused blocks, which are layers."""
    return _efficientnet(["fused", "fused", "unfused"])


def efficientnet_lite() -> keras.Model:
    """With relu6 and without padding before the stem."""
    return _efficientnet(["v1", "v1"], activation="relu6", include_stem_padding=False)


def hgnetv2(**options) -> keras.Model:
    """Its stages are layers of layers."""
    return models.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        stackwise_stage_filters=[[8, 8, 16, 1, 2, 3], [16, 8, 16, 1, 2, 3]],
        apply_downsample=[False, True],
        image_shape=(32, 32, 3),
        **{
            "use_learnable_affine_block": False,
            "use_lightweight_conv_block": [False, True],
            **options,
        },
    )


def densenet() -> keras.Model:
    """Pre-activations whose inputs have other users."""
    return models.DenseNetBackbone([2, 2], image_shape=(32, 32, 3), growth_rate=8)


def cspnet() -> keras.Model:
    """Darknet blocks in cross-stage partial stages."""
    return models.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=2,
        stackwise_depth=[1, 1],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[8, 16],
        block_type="dark_block",
        stage_type="csp",
        bottle_ratio=[0.5, 1.0],
        expand_ratio=[2.0, 1.0],
        block_ratio=[1.0, 0.5],
        image_shape=(32, 32, 3),
    )


def _resnet(**options) -> keras.Model:
    return models.ResNetBackbone(
        **{
            "input_conv_filters": [64],
            "input_conv_kernel_sizes": [7],
            "stackwise_num_filters": [64, 8],
            "stackwise_num_blocks": [1, 2],
            "stackwise_num_strides": [1, 2],
            "block_type": "basic_block",
            "image_shape": (32, 32, 3),
            **options,
        }
    )


def resnet_v1() -> keras.Model:
    """Of basic blocks."""
    return _resnet()


def resnet_v2() -> keras.Model:
    """Of pre-activated bottleneck blocks."""
    return _resnet(block_type="bottleneck_block", use_pre_activation=True)


def resnet_vd() -> keras.Model:
    """With a deep stem and average pooling in its shortcuts."""
    return _resnet(
        block_type="basic_block_vd",
        input_conv_filters=[8, 8, 64],
        input_conv_kernel_sizes=[3, 3, 3],
    )


def xception() -> keras.Model:
    """Of separable convolutions."""
    return models.XceptionBackbone(
        stackwise_conv_filters=[[4, 8], [8, 16], [32, 32]],
        stackwise_pooling=[True, True, False],
        image_shape=(71, 71, 3),
    )


def mit() -> keras.Model:
    """A transformer, which has layer normalization alone."""
    return models.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
        image_shape=(32, 32, 3),
    )


def segformer() -> keras.Model:
    """With one batch normalization in its decoder."""
    backbone = models.SegFormerBackbone(image_encoder=mit(), projection_filters=8)
    return models.SegFormerImageSegmenter(backbone=backbone, num_classes=3)


def deeplab_v3() -> keras.Model:
    """With its pyramid pooling, which is one layer."""
    backbone = models.DeepLabV3Backbone(
        image_encoder=_resnet(
            stackwise_num_filters=[64, 8, 8],
            stackwise_num_blocks=[1, 1, 1],
            stackwise_num_strides=[1, 2, 2],
        ),
        spatial_pyramid_pooling_key="P4",
        low_level_feature_key="P2",
        upsampling_size=4,
        dilation_rates=[2, 3],
        projection_filters=4,
        image_shape=(32, 32, 3),
    )
    return models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=3)


def retinanet() -> keras.Model:
    """With the layers of its pyramid in dictionaries."""
    encoder = _resnet(
        stackwise_num_filters=[64, 8, 8],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        image_shape=(64, 64, 3),
    )
    backbone = models.RetinaNetBackbone(
        image_encoder=encoder, min_level=3, max_level=4, use_p5=False, use_fpn_batch_norm=True
    )
    converter = keras_hub.layers.RetinaNetImageConverter(
        image_size=(64, 64), scale=1 / 255, bounding_box_format="yxyx"
    )
    return models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=3,
        bounding_box_format="yxyx",
        pre_logits_num_conv_layers=1,
        preprocessor=models.RetinaNetObjectDetectorPreprocessor(image_converter=converter),
    )


def d_fine() -> keras.Model:
    """A detector with parts that no config can copy."""
    encoder = models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[[8, 8, 16, 1, 2, 3], [16, 8, 16, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        depths=[1, 1],
        hidden_sizes=[16, 16],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(64, 64, 3),
        out_features=["stage1", "stage2"],
    )
    return models.DFineBackbone(
        backbone=encoder,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=3,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(64, 64),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[16, 16],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=16,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.34,
        eval_idx=-1,
        num_decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=1,
        out_features=["stage1", "stage2"],
        image_shape=(64, 64, 3),
        seed=0,
    )


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    build.__name__: build
    for build in (
        mobilenet, efficientnet_v1, efficientnet_v2, efficientnet_lite, hgnetv2, densenet, cspnet,
        resnet_v1, resnet_v2, resnet_vd, xception, mit, segformer, deeplab_v3, retinanet, d_fine,
    )
}  # fmt: skip
