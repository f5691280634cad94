"""The person's rig in USD: a skeleton with joints for head, jaw and eyes, and a mesh with blend shapes (UsdSkel).

``/World/Head`` is the SkelRoot, ``/World/Head/Mesh`` the template at rest, in its own vertices and quads, with texture
coordinates and a subset for each material; ``/World/Head/Rig`` the skeleton, whose joint ``head`` carries the pose, and
``/World/Head/Rig/Performance`` what it does. In lost frames there are no samples, and the joint ``head`` is scaled to
next to nothing: not every program knows visibility that changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nphm_track.export.frames import present_rows
from nphm_track.export.options import ExportOptions
from nphm_track.export.rig import GROUPS, JOINTS, PARENT, RiggedTake, rigged_take
from nphm_track.heads.template import Template
from nphm_track.rendering.rasteriser import vertex_normals
from nphm_track.tracking.progress import Progress
from nphm_track.tracking.records import Status
from nphm_track.tracking.run_folder import Run

if TYPE_CHECKING:
    from pxr import Usd

SKIN_COLOUR = (0.8, 0.72, 0.66)
NOTHING = 1e-3
"""Scale of a head that is lost: programs take matrices apart, which they cannot do with less."""
AT_ONCE = 0.05
"""Frames within which a head comes and goes: Blender takes keys within 0.01 for one."""
Array = NDArray[np.floating]


def write_rig(stage: Usd.Stage, run: Run, options: ExportOptions, codes: Array, progress: Progress) -> None:
    """Add the head to a stage; ``codes`` [T] are the time codes of the track's rows."""
    from pxr import Gf, Usd, UsdGeom, UsdSkel, Vt

    track, rows = run.track, present_rows(run)
    take = rigged_take(run, rows, progress)
    root = UsdSkel.Root.Define(stage, "/World/Head")
    skeleton = UsdSkel.Skeleton.Define(stage, "/World/Head/Rig")
    performance = UsdSkel.Animation.Define(stage, "/World/Head/Rig/Performance")
    joints = [name if parent < 0 else f"{JOINTS[parent]}/{name}" for name, parent in zip(JOINTS, PARENT, strict=True)]
    places = options.points(take.places)
    at_rest = Vt.Matrix4dArray([Gf.Matrix4d(1).SetTranslate(Gf.Vec3d(*place)) for place in places.tolist()])
    skeleton.CreateJointsAttr(joints)
    skeleton.CreateBindTransformsAttr(at_rest)
    skeleton.CreateRestTransformsAttr(at_rest)  # the head's place is the origin: relative to it they are the same
    binding = UsdSkel.BindingAPI.Apply(skeleton.GetPrim())
    binding.CreateAnimationSourceRel().SetTargets([performance.GetPath()])
    _mesh(stage, take, options)

    R, t = options.head_pose(track.R[rows], track.t[rows])
    axes = options.axes
    turns = axes @ take.turns.astype(np.float64) @ axes.T
    shifts = places + options.points(take.shifts)
    turns[:, 0], shifts[:, 0] = R, t
    performance.CreateJointsAttr(joints)
    performance.CreateBlendShapesAttr(list(take.names))
    rotations = performance.CreateRotationsAttr()
    translations, weights = performance.CreateTranslationsAttr(), performance.CreateBlendShapeWeightsAttr()
    for i, row in enumerate(rows.tolist()):
        code = Usd.TimeCode(float(codes[row]))
        turned = [Gf.Matrix3d(turn.T.tolist()).ExtractRotation().GetQuat() for turn in turns[i]]  # vectors are rows
        rotations.Set(Vt.QuatfArray([Gf.Quatf(q) for q in turned]), code)
        translations.Set(_vectors(shifts[i]), code)
        weights.Set(Vt.FloatArray.FromNumpy(np.ascontiguousarray(take.weights[i], np.float32)), code)
    scales = performance.CreateScalesAttr()
    for scale_code, seen in _seen(track.status == Status.LOST, codes):
        head = 1.0 if seen else NOTHING
        values = [Gf.Vec3h(head)] + [Gf.Vec3h(1)] * (len(joints) - 1)
        scales.Set(Vt.Vec3hArray(values), Usd.TimeCode.Default() if scale_code is None else scale_code)
    UsdGeom.Boundable(root.GetPrim()).CreateExtentAttr(_extent(R, t, options.points(take.neutral)))


def _seen(lost: NDArray[np.bool_], codes: Array) -> list[tuple[float | None, bool]]:
    """Time codes and whether the head is there from them on; None for always."""
    if not lost.any():
        return [(None, True)]
    out: list[tuple[float | None, bool]] = [(float(codes[0]), not lost[0])]
    for row in np.flatnonzero(np.diff(lost.astype(int))) + 1:
        out += [(float(codes[row]) - AT_ONCE, bool(lost[row])), (float(codes[row]), not lost[row])]
    return out


def _mesh(stage: Usd.Stage, take: RiggedTake, options: ExportOptions) -> None:
    from pxr import Sdf, UsdGeom, UsdSkel, Vt

    template = take.template
    quads, quad_uv = template.quads[template.drawn], template.quad_uv[template.drawn]
    corners = np.ones(quads.shape, bool)
    corners[:, 3] = quads[:, 3] >= 0
    mesh = UsdGeom.Mesh.Define(stage, "/World/Head/Mesh")
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(corners.sum(1).astype(np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(quads[corners], np.int32)))
    mesh.CreateDoubleSidedAttr(True)
    points = options.points(take.neutral)
    mesh.CreatePointsAttr(_vectors(points))
    mesh.CreateExtentAttr(_vectors(np.stack([points.min(0), points.max(0)])))
    normals = vertex_normals(take.neutral, template.faces)
    mesh.CreateNormalsAttr(_vectors(normals @ options.axes.T))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)

    group, uv = take.tiles(quads, quad_uv)
    kinds, primvars = Sdf.ValueTypeNames, UsdGeom.PrimvarsAPI(mesh)
    st = primvars.CreatePrimvar("st", kinds.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
    st.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(uv[corners], np.float32)))
    mesh.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex).Set(_vectors(template.colours_on(SKIN_COLOUR)))
    _materials(stage, mesh, group)

    binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
    binding.CreateSkeletonRel().SetTargets(["/World/Head/Rig"])
    binding.CreateJointIndicesPrimvar(False, 1).Set(Vt.IntArray.FromNumpy(take.joint_of_vertex.astype(np.int32)))
    binding.CreateJointWeightsPrimvar(False, 1).Set(Vt.FloatArray(len(points), 1.0))
    binding.CreateBlendShapesAttr(list(take.names))
    _shapes(stage, take, options, binding, template)


def _shapes(stage: Usd.Stage, take: RiggedTake, options: ExportOptions, binding: object, template: Template) -> None:
    from pxr import UsdSkel, Vt

    normals = vertex_normals(take.neutral, template.faces)
    paths = []
    for name, target in zip(take.names, take.targets, strict=True):
        shape = UsdSkel.BlendShape.Define(stage, f"/World/Head/Mesh/{name}")
        moving = np.flatnonzero(target.any(1))
        turned = vertex_normals(take.neutral + target, template.faces) - normals
        shape.CreatePointIndicesAttr(Vt.IntArray.FromNumpy(moving.astype(np.int32)))
        shape.CreateOffsetsAttr(_vectors(options.points(target[moving])))
        shape.CreateNormalOffsetsAttr(_vectors(turned[moving] @ options.axes.T))
        paths.append(shape.GetPath())
    binding.CreateBlendShapeTargetsRel().SetTargets(paths)  # type: ignore[attr-defined]


def _materials(stage: Usd.Stage, mesh: object, group: NDArray[np.int64]) -> None:
    """A material for each group of parts, coloured by the mesh's display colour."""
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    for g, name in enumerate(GROUPS):
        material = UsdShade.Material.Define(stage, f"/World/Materials/{name}")
        reader = UsdShade.Shader.Define(stage, f"{material.GetPath()}/colour")
        reader.CreateIdAttr("UsdPrimvarReader_float3")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
        colour = reader.CreateOutput("result", Sdf.ValueTypeNames.Float3)
        shader = UsdShade.Shader.Define(stage, f"{material.GetPath()}/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(colour)
        shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(0.6)
        surface = shader.CreateOutput("surface", Sdf.ValueTypeNames.Token)
        material.CreateSurfaceOutput().ConnectToSource(surface)
        faces = Vt.IntArray.FromNumpy(np.flatnonzero(group == g).astype(np.int32))
        subset = UsdGeom.Subset.CreateGeomSubset(
            mesh, name, UsdGeom.Tokens.face, faces, UsdShade.Tokens.materialBind, UsdGeom.Tokens.partition
        )
        UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(material)


def _extent(R: Array, t: Array, points: Array) -> object:
    """Box [2, 3] that the head stays in."""
    reach = np.linalg.norm(points, axis=1).max()
    return _vectors(np.stack([t.min(0) - reach, t.max(0) + reach]))


def _vectors(values: Array) -> object:
    from pxr import Vt

    return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values, np.float32))
