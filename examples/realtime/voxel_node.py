"""UNTESTED skeleton of a ROS 2 node: six camera topics in, a voxel grid of classes out. No ROS was at hand to run it.

    python examples/realtime/voxel_node.py --ros-args -p file:=best.onnx -p cameras:=[/cam0,/cam1]

Per camera: `<topic>/image_rect` (sensor_msgs/Image, rgb8, rectified) and `<topic>/camera_info`; poses come from tf2,
`base_link` being the ego frame (x forward, y left, z up). The voxels go out as a PointCloud2 of occupied centres with
their class as intensity. Images must have the size of the graph, and a network that looks back wants odometry, too: see
`Student.look` in realtime.py beside this file.
"""

import message_filters
import numpy as np
import rclpy
import tf2_ros
from rclpy.node import Node
from realtime import Student
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

FRAME = "base_link"
SLOP = 0.05  # seconds between the images of one look


class VoxelNode(Node):
    """Looks whenever all cameras have an image."""

    def __init__(self):
        super().__init__("occ_distill")
        self.student = Student(self.declare_parameter("file", "best.onnx").value, threads=0)
        topics = self.declare_parameter("cameras", ["/cam0"]).value
        self.buffer = tf2_ros.Buffer()
        self.listener = tf2_ros.TransformListener(self.buffer, self)
        self.publisher = self.create_publisher(PointCloud2, "voxels", 1)
        inputs = [message_filters.Subscriber(self, Image, f"{topic}/image_rect") for topic in topics]
        inputs += [message_filters.Subscriber(self, CameraInfo, f"{topic}/camera_info") for topic in topics]
        self.together = message_filters.ApproximateTimeSynchronizer(inputs, queue_size=2, slop=SLOP)
        self.together.registerCallback(self.look)

    def look(self, *messages):
        """One answer for one image of every camera."""
        images, infos = messages[: len(messages) // 2], messages[len(messages) // 2 :]
        pixels = [np.frombuffer(m.data, np.uint8).reshape(m.height, m.width, 3).transpose(2, 0, 1) for m in images]
        feeds = {
            "images": np.stack(pixels)[None],
            "intrinsics": np.float32([info.p[[0, 1, 2, 4, 5, 6, 8, 9, 10]].reshape(3, 3) for info in infos])[None],
            "cam2ego": np.float32([self.pose(m.header) for m in images])[None],
        }
        classes_XYZ = self.student.look(feeds, np.eye(4))
        self.publisher.publish(self.cloud(classes_XYZ, images[0].header.stamp))

    def pose(self, header):
        """A camera to the ego frame (4, 4)."""
        found = self.buffer.lookup_transform(FRAME, header.frame_id, rclpy.time.Time.from_msg(header.stamp)).transform
        x, y, z, w = (getattr(found.rotation, axis) for axis in "xyzw")
        turn = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        matrix = np.eye(4)
        matrix[:3, :3] += 2 * w * turn + 2 * turn @ turn
        matrix[:3, 3] = found.translation.x, found.translation.y, found.translation.z
        return matrix

    def cloud(self, classes_XYZ, stamp):
        """Centres of occupied voxels, x, y, z in metres, and their class."""
        grid, free = self.student.facts["grid"], self.student.facts["classes"]["free"]
        index = np.argwhere(classes_XYZ != free)
        centres = np.array(grid["lower"]) + (index + 0.5) * grid["voxel_size"]
        rows = np.column_stack([centres, classes_XYZ[tuple(index.T)]]).astype(np.float32)
        names = ("x", "y", "z", "intensity")
        fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate(names)]
        return PointCloud2(
            header=Header(stamp=stamp, frame_id=FRAME),
            height=1,
            width=len(rows),
            fields=fields,
            point_step=16,
            row_step=16 * len(rows),
            data=rows.tobytes(),
            is_dense=True,
        )


def main():
    """Spin until stopped."""
    rclpy.init()
    rclpy.spin(VoxelNode())


if __name__ == "__main__":
    main()
