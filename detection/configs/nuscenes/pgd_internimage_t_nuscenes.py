"""PGD (Wang et al., 2021) with InternImage-T on nuScenes, 12 epochs, one camera at a time. Ours; none was released."""

_base_ = "./fcos3d_internimage_t_nuscenes.py"

wide = (256,)
# The mean and standard deviation of the depth, and the mean length, height and width, of each class, in metres.
base_depths = (
    (31.99, 21.12),
    (37.15, 24.63),
    (39.69, 23.97),
    (40.91, 26.34),
    (34.16, 20.11),
    (22.35, 13.70),
    (24.28, 16.05),
    (27.26, 15.50),
    (20.61, 13.68),
    (22.74, 15.01),
)
base_dims = (
    (4.62, 1.73, 1.96),
    (6.93, 2.83, 2.51),
    (12.56, 3.89, 2.94),
    (11.22, 3.50, 2.95),
    (6.68, 3.21, 2.85),
    (6.68, 3.21, 2.85),
    (2.11, 1.46, 0.78),
    (0.73, 1.77, 0.67),
    (0.41, 1.08, 0.41),
    (0.50, 0.99, 2.52),
)
model = dict(
    bbox_head=dict(
        type="PGDHead",
        pred_bbox2d=True,
        pred_keypoints=False,
        use_depth_classifier=True,
        depth_branch=wide,
        depth_range=(0, 50),
        depth_unit=10,
        division="uniform",
        depth_bins=6,
        group_reg_dims=(2, 1, 3, 1, 2, 4),  # offset, depth, size, rotation, velocity, 2D box
        reg_branch=(wide, wide, wide, wide, (), wide),
        loss_depth=dict(type="mmdet.SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0),
        bbox_coder=dict(_delete_=True, type="PGDBBoxCoder", base_depths=base_depths, base_dims=base_dims, code_size=9),
    ),
    # As FCOS3D's, and 0.2 for the four distances of the 2D box.
    train_cfg=dict(code_weight=[1.0, 1.0, 0.2, 1.0, 1.0, 1.0, 1.0, 0.05, 0.05, 0.2, 0.2, 0.2, 0.2]),
    test_cfg=dict(score_thr=0.01),
)
